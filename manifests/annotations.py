"""Find the published files of a data set below a folder, or download them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import first_line
from ..foreign import file_sha256
from .clip import ManifestError

# Prefix of the temporary folder of a running or interrupted download.
FETCHING = ".fetch-"


@dataclass(frozen=True, kw_only=True)
class AnnotationFile:
    """A published annotation file.

    Attributes:
        name: file name on disk.
        url: address of the file, or of an archive that contains it.
        sha256: digest of the file. A file without digest is not downloaded, because it could not be verified.
        member: path in the archive at ``url``, a zip or tar file; empty if ``url`` is the file itself.
        note: instructions for a manual download, for example a form to fill in.
    """

    name: str
    url: str
    sha256: str = ""
    member: str = ""
    note: str = ""

    def fetch(self, folder: Path) -> Path:
        """Download the file into ``folder`` and verify it. Return its path.

        Raises:
            ManifestError: if the download fails; the message says where to get the file and where to put it.
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
            # In a private folder: another program may download the same file, and a wrong file must not remain.
            with tempfile.TemporaryDirectory(prefix=FETCHING, dir=folder) as temporary:
                pooch.retrieve(
                    self.url,
                    known_hash=None if self.member else self.sha256,
                    fname=archive if self.member else self.name,
                    path=temporary,
                    processor=unpack(members=[self.member], extract_dir=".") if self.member else None,
                )
                fetched = Path(temporary, self.member or self.name)
                if self.member and file_sha256(fetched, ManifestError) != self.sha256:
                    raise ManifestError(
                        f"{self.url} has a different {self.name} than amex expects (its sha256 differs); {by_hand}"
                    )
                fetched.replace(target)
        except ManifestError:
            raise
        except Exception as error:  # many types: no network, missing file, wrong digest, invalid archive
            raise ManifestError(f"cannot fetch {self.name}: {first_line(error)}; {by_hand}") from error
        return target

    @property
    def where(self) -> str:
        """Where to download the file manually."""
        member = f" ({self.member} in it)" if self.member else ""
        return f"{self.url}{member}{f', {self.note}' if self.note else ''}"


class Annotations:
    """The annotation files of a data set on disk: below a folder at any depth, or beside a file.

    Attributes:
        path: the folder or the file.
    """

    def __init__(self, path: Path, published: Iterable[AnnotationFile] = (), stands_for: str = "") -> None:
        """Set the folder or the file.

        Args:
            published: the published files of the data set.
            stands_for: the name under which a file with an unpublished name is found.
        """
        self.path = path
        self._published = {file.name: file for file in published}
        self._file = (path.name if path.name in self._published else stands_for) if path.is_file() else None
        self._folder = path if self._file is None else path.parent

    def find(self, name: str) -> Path | None:
        """Return the path of a file by its name, or None.

        Raises:
            ManifestError: if the folder contains several: different data sets have files with the same name.
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
        """Return the path of a file. If it is missing, raise ManifestError that says where it is published."""
        path = self.find(name)
        if path is None:
            file = self._published.get(name)
            raise ManifestError(
                f"{self._folder / name} is missing" + (f"; it is published at {file.where}" if file else "")
            )
        return path
