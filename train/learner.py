"""One training step for mmengine's Runner: the model, its objective and the gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import needs
from .exchange import is_distributed
from .models import Embeddings, RetrievalModel
from .objective import Objective, vectors

with needs("train", "training"):
    from mmengine.dist import all_reduce_params
    from mmengine.model import BaseModel
    from mmengine.optim import OptimWrapper, OptimWrapperDict


class Learner(BaseModel):
    """A model with its training objective.

    Gradients are reduced over processes once a step, when a whole batch is done, instead of by a wrapper around
    ``forward``: the loss of a process depends on the pairs of all processes.

    Args:
        encode_at_once: number of pairs to encode at once; 0: the whole batch.

    Attributes:
        progress: completed share of the run, set before every step.
    """

    def __init__(self, model: RetrievalModel, objective: Objective, *, encode_at_once: int = 0) -> None:
        super().__init__()
        self.model, self.objective, self.encode_at_once = model, objective, encode_at_once
        self.progress = 0.0

    def forward(self, batch: dict[str, Any], mode: str = "loss") -> dict[str, Tensor]:
        """Return the terms of the objective for a batch on the model's device; ``mode`` is unused."""
        videos, texts = self.model.encode_pairs(batch)
        return self._terms(batch, videos, texts, self._encode_second(batch))

    def _terms(
        self, batch: dict[str, Any], videos: Embeddings, texts: Embeddings, second: Embeddings | None
    ) -> dict[str, Tensor]:
        return self.objective(self.model, videos, texts, batch, second=second, progress=self.progress)

    def train_step(self, data: dict[str, Any], optim_wrapper: OptimWrapper | OptimWrapperDict) -> dict[str, Tensor]:
        """Update the adversary, if it has its own step, then everything else.

        Args:
            data: a batch of pairs from ``Split``.

        Returns:
            The terms of the objective by name, and ``loss``, their sum.
        """
        batch = self.model.to_device(data)
        encoders = optim_wrapper["encoders"] if isinstance(optim_wrapper, OptimWrapperDict) else optim_wrapper
        adversary = self.objective.adversary
        # Use a separate autocast context: older versions of torch cache the weights cast here without gradients.
        with encoders.optim_context(self):
            second = self._encode_second(batch)
        with encoders.optim_context(self):
            if self.encode_at_once and self.encode_at_once < len(batch["clip"]):
                videos, texts, states = self._encode_without_gradient(batch)
            else:
                (videos, texts), states = self.model.encode_pairs(batch), []
            if adversary is not None and adversary.has_own_step:
                self._adversary_step(optim_wrapper["adversary"], videos, texts)
            terms = self._terms(batch, videos, texts, second)
        loss, logged = self.parse_losses(terms)
        # As mmengine's update_params, with the reduction between gradients and step.
        encoders.backward(encoders.scale_loss(loss))
        if states:
            self._backward_through_encoders(encoders, batch, videos, texts, states)
        if encoders.should_update():
            _average_gradients(parameter for parameter in self.parameters() if parameter.requires_grad)
            encoders.step()
            encoders.zero_grad()
        return logged

    @torch.no_grad()
    def _encode_second(self, batch: dict[str, Any]) -> Embeddings | None:
        """Encode the second draw of the videos' rows in evaluation mode; this consumes no random numbers."""
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
        _average_gradients(parameters)
        optimizer.step()
        optimizer.zero_grad()
        adversary.requires_grad_(False)

    # Cached gradients (Gao et al., RepL4NLP 2021) save memory, because the embeddings of a batch are small and their
    # computation is not. All embeddings are computed without gradient. The loss gives the gradient of each. Then each
    # part is encoded again, with the same dropout, and its gradient continues into the encoders.

    def _parts(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        count = len(batch["clip"])
        begins = list(range(0, count, self.encode_at_once))
        if count - begins[-1] == 1 and len(begins) > 1:  # batch normalisation needs a variance
            begins.pop()
        for begin, end in itertools.pairwise([*begins, count]):
            yield {name: _cut(batch[name], slice(begin, end)) for name in ("video", "text")}

    def _encode_without_gradient(self, batch: dict[str, Any]) -> tuple[Embeddings, Embeddings, list[Any]]:
        """Return the embeddings as leaves of a graph, and the random state before each part."""
        parts, states = [], []
        with torch.no_grad():
            for part in self._parts(batch):
                states.append(_random_state(self.model.device))
                parts.append(self.model.encode_pairs(part))
        videos, texts = (
            {name: torch.cat([part[side][name] for part in parts]) for name in parts[0][side]} for side in (0, 1)
        )
        for leaf in (*videos.values(), *texts.values()):
            leaf.requires_grad_(leaf.is_floating_point())
        return videos, texts, states

    def _backward_through_encoders(
        self, encoders: OptimWrapper, batch: dict[str, Any], videos: Embeddings, texts: Embeddings, states: list[Any]
    ) -> None:
        begin, last = 0, _random_state(self.model.device)
        for part, state in zip(self._parts(batch), states, strict=True):
            _set_random_state(self.model.device, state)
            with encoders.optim_context(self):
                encoded = self.model.encode_pairs(part)
            tensors, gradients = [], []
            for leaves, side in zip((videos, texts), encoded, strict=True):
                for name, tensor in side.items():
                    if tensor.requires_grad and leaves[name].grad is not None:
                        tensors.append(tensor)
                        gradients.append(leaves[name].grad[begin : begin + len(tensor)].to(tensor.dtype))
            torch.autograd.backward(tensors, gradients)
            begin += len(next(iter(encoded[0].values())))
        _set_random_state(self.model.device, last)


def _average_gradients(parameters: Any) -> None:
    """Replace gradients by their mean over all processes."""
    if is_distributed():
        all_reduce_params([p.grad for p in parameters if p.grad is not None], op="mean")


def _cut(batch: Any, part: slice) -> Any:
    return {name: _cut(value, part) for name, value in batch.items()} if isinstance(batch, dict) else batch[part]


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
