"""One step of training, as mmengine's Runner asks for it: the model, its objective, and how gradients are made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import all_reduce_params
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor

from .exchange import several
from .models import Embeddings, RetrievalModel
from .objective import Objective, vectors


class Learner(BaseModel):
    """A model that is trained.

    Its gradients are exchanged once a step, when all of a batch are there, and not by a wrapper around ``forward``:
    the loss of a process is of the pairs of all.

    Args:
        encode_at_once: of how many pairs the embeddings are computed at once; 0: of all of a batch.

    Attributes:
        progress: the share of the run that is over, set before every step.
    """

    def __init__(self, model: RetrievalModel, objective: Objective, *, encode_at_once: int = 0) -> None:
        super().__init__()
        self.model, self.objective, self.encode_at_once = model, objective, encode_at_once
        self.progress = 0.0

    def forward(self, batch: dict[str, Any], mode: str = "loss") -> dict[str, Tensor]:
        """The terms of the objective on a batch that is on the model's device; ``mode`` is mmengine's, and not read."""
        videos, texts = self.model.encode_pairs(batch)
        return self._terms(batch, videos, texts, self._second(batch))

    def _terms(
        self, batch: dict[str, Any], videos: Embeddings, texts: Embeddings, second: Embeddings | None
    ) -> dict[str, Tensor]:
        return self.objective(self.model, videos, texts, batch, second=second, progress=self.progress)

    def train_step(self, data: dict[str, Any], optim_wrapper: OptimWrapper | OptimWrapperDict) -> dict[str, Tensor]:
        """A step of the networks that step by themselves, if there are any, then one of all else.

        Args:
            data: a batch of pairs, as of ``Split``.

        Returns:
            The terms of the objective by name, and ``loss``, their sum.
        """
        batch = self.model.to_device(data)
        encoders = optim_wrapper["encoders"] if isinstance(optim_wrapper, OptimWrapperDict) else optim_wrapper
        adversary = self.objective.adversary
        # A context of its own: older versions of torch keep what they cast in one without a way back to weights.
        with encoders.optim_context(self):
            second = self._second(batch)
        with encoders.optim_context(self):
            if self.encode_at_once and self.encode_at_once < len(batch["clip"]):
                videos, texts, states = self._without_gradient(batch)
            else:
                (videos, texts), states = self.model.encode_pairs(batch), []
            if adversary is not None and adversary.steps_alone:
                self._adversary_step(optim_wrapper["adversary"], videos, texts)
            terms = self._terms(batch, videos, texts, second)
        loss, logged = self.parse_losses(terms)
        # As mmengine's update_params, with the exchange between the gradients and the step.
        encoders.backward(encoders.scale_loss(loss))
        if states:
            self._through_the_encoders(encoders, batch, videos, texts, states)
        if encoders.should_update():
            _exchange(parameter for parameter in self.parameters() if parameter.requires_grad)
            encoders.step()
            encoders.zero_grad()
        return logged

    @torch.no_grad()
    def _second(self, batch: dict[str, Any]) -> Embeddings | None:
        """The videos from another draw of their rows, as a trained model sees them: no chance is used up."""
        if "second" not in batch:
            return None
        self.model.eval()
        second = self.model.encode_videos(batch["second"])
        self.model.train()
        return second

    def _adversary_step(self, optimizer: OptimWrapper, videos: Embeddings, texts: Embeddings) -> None:
        adversary = self.objective.adversary
        assert adversary is not None
        sides = [
            {level: x.detach().float() for level, x in vectors(self.model, side).items()} for side in (videos, texts)
        ]
        adversary.requires_grad_(True)
        device = self.model.device.type
        with torch.autocast(device, enabled=False):
            loss = adversary.own_loss(*sides)
        parameters = list(adversary.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        _exchange(parameters)
        optimizer.step()
        optimizer.zero_grad()
        adversary.requires_grad_(False)

    # Cached gradients (Gao et al., RepL4NLP 2021): the embeddings of a batch are small, what computes them is not. All
    # are computed without a gradient; the loss gives the gradient of each; a part after the other is computed again,
    # with the same dropout, and the gradient goes on into the encoders.

    def _parts(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        count = len(batch["clip"])
        begins = list(range(0, count, self.encode_at_once))
        if count - begins[-1] == 1 and len(begins) > 1:  # batch normalisation has no variance over one pair
            begins.pop()
        for begin, end in itertools.pairwise([*begins, count]):
            yield {name: _cut(batch[name], slice(begin, end)) for name in ("video", "text")}

    def _without_gradient(self, batch: dict[str, Any]) -> tuple[Embeddings, Embeddings, list[Any]]:
        """The embeddings as leaves of a graph, and for each part the state of chance before it."""
        parts, states = [], []
        with torch.no_grad():
            for part in self._parts(batch):
                states.append(_chance(self.model.device))
                parts.append(self.model.encode_pairs(part))
        videos, texts = (
            {name: torch.cat([part[side][name] for part in parts]) for name in parts[0][side]} for side in (0, 1)
        )
        for leaf in (*videos.values(), *texts.values()):
            leaf.requires_grad_(leaf.is_floating_point())
        return videos, texts, states

    def _through_the_encoders(
        self, encoders: OptimWrapper, batch: dict[str, Any], videos: Embeddings, texts: Embeddings, states: list[Any]
    ) -> None:
        begin, last = 0, _chance(self.model.device)
        for part, state in zip(self._parts(batch), states, strict=True):
            _set_chance(self.model.device, state)
            with encoders.optim_context(self):
                made = self.model.encode_pairs(part)
            tensors, gradients = [], []
            for leaves, side in zip((videos, texts), made, strict=True):
                for name, tensor in side.items():
                    if tensor.requires_grad and leaves[name].grad is not None:
                        tensors.append(tensor)
                        gradients.append(leaves[name].grad[begin : begin + len(tensor)].to(tensor.dtype))
            torch.autograd.backward(tensors, gradients)
            begin += len(next(iter(made[0].values())))
        _set_chance(self.model.device, last)


def _exchange(parameters: Any) -> None:
    """Gradients become their mean over all processes."""
    if several():
        all_reduce_params([p.grad for p in parameters if p.grad is not None], op="mean")


def _cut(batch: Any, some: slice) -> Any:
    return {name: _cut(value, some) for name, value in batch.items()} if isinstance(batch, dict) else batch[some]


def _chance(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_chance(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
