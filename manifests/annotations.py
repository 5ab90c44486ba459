"""The files that a data set is published in: found below a folder, or fetched from their published address."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import first_line
from ..foreign import file_sha256
from .clip import ManifestError

# Begins the name of the folder of a fetch that is going on, or was interrupted.
FETCHING = ".fetch-"


@dataclass(frozen=True, kw_only=True)
class AnnotationFile:
    """A file of annotations.

    Attributes:
        name: what it is called once it is on the disk.
        url: where it is published: the file itself, or an archive that has it.
        sha256: of the file. A file without one is not fetched, since nothing could tell whether it is the right one.
        member: its path in the archive at ``url``, a zip or a tar; empty where the address is that of the file.
        note: what a person must know to get it, such as a form to fill in.
    """

    name: str
    url: str
    sha256: str = ""
    member: str = ""
    note: str = ""

    def fetch(self, folder: Path) -> Path:
        """Downloads the file into ``folder`` and checks it; returns its path.

        Raises:
            ManifestError: with the address, the name and the place to put the file, where it cannot be had.
        """
        import pooch
        from pooch.processors import Untar, Unzip

        by_hand = f"download it yourself: {self.where}, and put it at {folder / self.name}"
        if not self.sha256:
            raise ManifestError(f"{self.name} is not in {folder}, and its digest is not known to amex; {by_hand}")
        target, archive = folder / self.name, self.url.rsplit("/", 1)[-1]
        unpack = Unzip if archive.endswith(".zip") else Untar
        try:
            folder.mkdir(parents=True, exist_ok=True)
            pooch.get_logger().setLevel("ERROR")
            # Another program may fetch the same file, and what is not the right one must not be found next time.
            with tempfile.TemporaryDirectory(prefix=FETCHING, dir=folder) as own:
                pooch.retrieve(
                    self.url,
                    known_hash=None if self.member else self.sha256,
                    fname=archive if self.member else self.name,
                    path=own,
                    processor=unpack(members=[self.member], extract_dir=".") if self.member else None,
                )
                fetched = Path(own, self.member or self.name)
                if self.member and file_sha256(fetched, ManifestError) != self.sha256:
                    raise ManifestError(
                        f"{self.url} holds another {self.name} than amex knows (its sha256 differs); {by_hand}"
                    )
                fetched.replace(target)
        except ManifestError:
            raise
        except Exception as error:  # of many kinds: no network, no such file, another digest, no archive
            raise ManifestError(f"cannot fetch {self.name}: {first_line(error)}; {by_hand}") from error
        return target

    @property
    def where(self) -> str:
        """Where a person gets it."""
        member = f" ({self.member} in it)" if self.member else ""
        return f"{self.url}{member}{f', {self.note}' if self.note else ''}"


class Annotations:
    """The annotation files of a data set on this disk: below a folder at any depth, or beside one file.

    Attributes:
        path: the folder, or the file.
    """

    def __init__(self, path: Path, known: Iterable[AnnotationFile] = (), stands_for: str = "") -> None:
        """A file that is given itself counts under its own name if it is a known one, else as ``stands_for``."""
        self.path = path
        self._known = {file.name: file for file in known}
        self._file = (path.name if path.name in self._known else stands_for) if path.is_file() else None
        self._folder = path if self._file is None else path.parent

    def find(self, name: str) -> Path | None:
        """The path of a file by its name, or None.

        Raises:
            ManifestError: if there are several below the folder: other data sets have files of the same name.
        """
        if name == self._file:
            return self.path
        if (self._folder / name).is_file():
            return self._folder / name
        deeper = sorted(self._folder.rglob(name)) if self._file is None else []
        deeper = [path for path in deeper if not path.relative_to(self._folder).parts[0].startswith(FETCHING)]
        if len(deeper) > 1:
            raise ManifestError(f"{deeper[0]} and {deeper[1]} could be {name}: give the folder of one of them")
        return deeper[0] if deeper else None

    def __getitem__(self, name: str) -> Path:
        """The path of a file; raises ManifestError that says where it is published and where to put it."""
        found = self.find(name)
        if found is None:
            known = self._known.get(name)
            raise ManifestError(
                f"{self._folder / name} is missing" + (f"; it is published at {known.where}" if known else "")
            )
        return found
