"""Training by several processes, each with views of its own: torchrun --nproc-per-node N scripts/train.py

Every process has the whole model, its optimizer and its strategy, draws the same random numbers, and so
takes the same steps. In a step they exchange three things, in the order of the views and with sums in that
order, so that all get the same bits: the losses, what the strategy looks at, and the sums of the gradients.
Process 0 writes all files.

`Ranks` is a process alone, to which all this is nothing; `Group` is one of several. docs/ranks.md
"""

import contextlib
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from gsopt.device import collective_backends
from gsopt.errors import InputError
from gsopt.guards import NonFinite

if TYPE_CHECKING:
    from gsopt.trainer import Trainer

TIMEOUT = timedelta(minutes=10)  # for an answer of the others: they may be loading, or saving
SMALL = 1024  # bytes of a message that takes one exchange; longer ones take two
Item = TypeVar("Item")
Result = TypeVar("Result")


class RankError(InputError):
    """Another process has failed, or does not answer."""


class Seen(NamedTuple):
    """What the backward pass of a view leaves beside the gradients."""

    terms: dict[str, Tensor]  # of the loss, and "total", each []
    image: Tensor  # [H, W, 3]
    photo: Tensor  # [H, W, 3]
    info: Mapping[str, Any]  # of the rasterizer
    mask: Tensor | None  # [H, W], where the photo is used
    grad2d: bool  # whether info["means2d"].grad was asked for


class SharedInfo(dict):
    """What the processes tell each other of a rendering: radii, means2d with its gradients, the sizes."""

    def __missing__(self, key: str) -> Any:
        raise InputError(
            f'info["{key}"]: processes exchange {", ".join(self)} only; train this strategy with one process'
        )


@dataclass
class Failure:
    """Sent instead of what was expected, by a process that ends."""

    text: str


class Ranks:
    """One process alone. What it asks of the others is its own answer, and nothing takes any time."""

    rank, size, local_rank, local_size = 0, 1, 0, 1
    broken = False  # the others cannot be reached any more

    @staticmethod
    def current() -> "Ranks":
        """This process among those of torch.distributed; alone where no group was made."""
        there = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        return Group() if there else Ranks()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def deal(self, items: Sequence[Item]) -> list[Item]:
        """This process's part of what all have: in rounds, one for each process in turn."""
        return list(items[self.rank :: self.size])

    def each(
        self, backward: Callable[[], Seen], observe: Callable[[Mapping[str, Any]], None] | None
    ) -> tuple[list[dict[str, Tensor]], Seen]:
        """One round: a view of every process. `observe` gets the info of each, in order; None looks at none.

        Returns the loss terms of each view in order, and what this process has seen.

        Raises:
            NonFinite: in all processes, where any of them found something that is not finite.
        """
        seen = backward()
        if observe is not None:
            observe(seen.info)
        return [seen.terms], seen

    def sum_gradients(self, optimizer: Optimizer) -> None:
        """Make the gradients of every process their sum, added up in the order of the processes."""

    def check_same(self, trainer: "Trainer") -> None:
        """Raise InputError, in all processes, where the state of one is not to the bit that of the first."""

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """The results of `work`, in order and in every process, each computed by one of them."""
        return map(work, items)

    def tell(self, make: Callable[[], Result]) -> Result:
        """What `make` returns in the first process, in all of them."""
        return make()

    def any(self, value: Result | None) -> Result | None:
        """The value of the first process that has one, in all of them."""
        return value

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Around what all do: an error in one process is an error in all."""
        yield


class Group(Ranks):
    """One of the several processes of torch.distributed's default group."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self._ended = False  # the others know, or cannot know, that this process fails

    def each(
        self, backward: Callable[[], Seen], observe: Callable[[Mapping[str, Any]], None] | None
    ) -> tuple[list[dict[str, Tensor]], Seen]:
        trouble = None
        try:
            seen = backward()
        except NonFinite as error:
            trouble = error
        if trouble is None:
            terms = {name: float(term) for name, term in seen.terms.items()}
            size = {name: seen.info[name] for name in ("width", "height", "n_cameras")}
            answers = self._exchange("view", (terms, size, seen.info["radii"].shape))
        else:
            answers = self._exchange("view", str(trouble))
        for answer in answers:
            if isinstance(answer, str):
                raise NonFinite(answer) from trouble
        self._require_rows([shape[-2] for *_, shape in answers])
        if observe is not None:
            for info in self._infos(seen, [size for _, size, _ in answers]):
                observe(info)
        numbers = [
            {name: torch.tensor(value, device=seen.image.device) for name, value in terms.items()}
            for terms, *_ in answers
        ]
        return numbers, seen

    @torch.no_grad()
    def sum_gradients(self, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        answers = self._exchange("gradients", [parameter.grad is not None for parameter in parameters])
        wanted = [p for p, *there in zip(parameters, *answers, strict=True) if any(there)]
        for kind in dict.fromkeys(parameter.dtype for parameter in wanted):
            of_kind = [parameter for parameter in wanted if parameter.dtype == kind]
            for parameter in of_kind:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self._sum([parameter.grad for parameter in of_kind])

    def check_same(self, trainer: "Trainer") -> None:
        mine = {name: digest(tensor) for name, tensor in state_tensors(trainer)}
        answers = self._exchange("digests", mine)
        for rank, theirs in enumerate(answers):
            names = {**answers[0], **theirs}
            if odd := [name for name in names if answers[0].get(name) != theirs.get(name)]:
                raise InputError(
                    f"iteration {trainer.step}: {', '.join(odd[:5])} of process {rank} and process 0 differ, "
                    "expected the same bits; give all processes the same versions and the same kind of "
                    f"processor, and go on from the newest checkpoint: --resume {trainer.run.path}"
                )

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        mine = {i: work(items[i]) for i in range(self.rank, len(items), self.size)}
        parts = self._exchange("results", mine)
        return iter([parts[i % self.size][i] for i in range(len(items))])

    def tell(self, make: Callable[[], Result]) -> Result:
        if self.first:
            value = make()
            self._exchange("tell", value)
            return value
        return self._exchange("tell", None)[0]

    def any(self, value: Result | None) -> Result | None:
        return next((answer for answer in self._exchange("any", value) if answer is not None), None)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._ended:
                with contextlib.suppress(RankError):  # which says what is raised here anyway
                    self._exchange("end", Failure(str(error) or type(error).__name__))
            raise

    def wait_for_first(self) -> None:
        """Until process 0 has ended, or ends as this one does."""
        with contextlib.suppress(RankError):  # that it is gone is what is waited for
            self._gather_bytes(b"")

    # ----------------------------------------------------------------------------------------- how it is done

    def _require_rows(self, counts: list[int]) -> None:
        if len(set(counts)) > 1:
            raise InputError(
                f"expected as many Gaussians in every process, found {', '.join(map(str, counts))}; "
                "go on from the newest checkpoint by --resume"
            )

    def _infos(self, seen: Seen, sizes: list[dict[str, int]]) -> Iterator[SharedInfo]:
        """The infos of all processes; all are here before the first is looked at."""
        means2d = seen.info["means2d"]
        tensors = {"radii": seen.info["radii"], "means2d": means2d.detach()}
        for name in ("grad", "absgrad") if seen.grad2d else ():
            if (gradient := getattr(means2d, name, None)) is not None:
                tensors[name] = gradient
        packed = torch.cat([t.contiguous().flatten().view(torch.uint8) for t in tensors.values()])
        for block, size in zip(self._gather(packed), sizes, strict=True):
            parts = block.split([tensor.numel() * tensor.element_size() for tensor in tensors.values()])
            found = {
                name: part.view(like.dtype).view(like.shape)
                for (name, like), part in zip(tensors.items(), parts, strict=True)
            }
            for name in ("grad", "absgrad"):
                if name in found:
                    setattr(found["means2d"], name, found.pop(name))
            yield SharedInfo(found | size)

    def _sum(self, tensors: list[Tensor]) -> None:
        """Each process sums one part, in order, and tells the others: a sum has one order and one place."""
        count = sum(tensor.numel() for tensor in tensors)
        part = -(-count // self.size)
        flat = torch.cat([*map(torch.flatten, tensors), tensors[0].new_zeros(part * self.size - count)])
        parts = torch.empty_like(flat)
        self._call(dist.all_to_all_single, parts, flat)
        total, *others = parts.view(self.size, part)
        for other in others:
            total += other
        self._call(dist.all_gather, list(flat.view(self.size, part)), total)
        for tensor, summed in zip(tensors, flat[:count].split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(summed.view(tensor.shape))

    def _exchange(self, what: str, value: Any) -> list[Any]:
        """The values of all processes, which may be anything small. Everything begins with one of these.

        Raises RankError where a process has sent its failure instead, or sends nothing.
        """
        answers = [pickle.loads(data) for data in self._gather_bytes(pickle.dumps((what, value)))]
        failures = [
            f"process {r}: {value.text}" for r, (_, value) in enumerate(answers) if isinstance(value, Failure)
        ]
        if failures:
            self._ended = True
            raise RankError(failures[0])
        if len(kinds := {kind for kind, _ in answers}) > 1:
            raise RuntimeError(f"processes are at different places: {', '.join(sorted(kinds))}")
        return [value for _, value in answers]

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        head = len(data).to_bytes(8, "little") + data[: SMALL - 8]
        heads = self._gather(_bytes(head, SMALL))
        found = [bytes(head.numpy()) for head in heads]
        lengths = [int.from_bytes(head[:8], "little") for head in found]
        if max(lengths) > SMALL - 8:
            found = [bytes(8) + bytes(whole.numpy()) for whole in self._gather(_bytes(data, max(lengths)))]
        return [head[8 : 8 + length] for head, length in zip(found, lengths, strict=True)]

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        self._call(dist.all_gather, found, tensor)
        return found

    def _call(self, collective: Callable[..., Any], *args: Any) -> None:
        if self.broken:
            raise RankError("the other processes cannot be reached any more")
        try:
            collective(*args)
        except RuntimeError as error:
            self.broken = self._ended = True
            reason = str(error).strip().split("\n")[0]
            raise RankError(
                f"another of the {self.size} processes has ended or gives no answer ({reason})"
            ) from error


def _bytes(data: bytes, length: int) -> Tensor:
    """uint8 [length] on the CPU, zeros at its end."""
    return torch.frombuffer(bytearray(data.ljust(length, b"\0")), dtype=torch.uint8)


def digest(tensor: Tensor) -> int:
    """A number that changes with any bit of a tensor, and with the order of its elements."""
    bits = tensor.detach().contiguous().flatten().view(torch.uint8)
    words = bits.view(torch.int32) if len(bits) % 4 == 0 else bits.int()
    odd = torch.arange(1, 2 * len(words), 2, dtype=torch.int32, device=words.device)
    return int((words * odd).sum(dtype=torch.int64))  # products by odd numbers lose nothing, modulo 2^32


def state_tensors(trainer: "Trainer") -> Iterator[tuple[str, Tensor]]:
    """What has to be the same in all processes, by name: parameters, moments, statistics, random choices."""
    yield from trainer.joint.named_parameters()
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in trainer.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"{group['name']}.{key}", value
    for name, value in trainer.strategy.state_dict().items():
        yield f"strategy.{name}", value
    yield "generator", trainer.generator.get_state()
    yield "order", torch.tensor([trainer.step, *trainer.order.queue], device="cpu")


def _make_group() -> None:
    """torch.distributed's default group, of the processes that torchrun has started.

    On one machine torchrun keeps its store when it starts them again, with the addresses of those that have
    ended: so each start has names of its own there.
    """
    # Its functions have the group there is when they are loaded for a default, and torch's optimizers load
    # them: that group is never let go, and its threads crash as Python ends.
    import torch.distributed.nn.functional  # noqa: F401

    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        dist.init_process_group(collective_backends(), timeout=TIMEOUT)
        return
    store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]  # documented, but not in __all__
    store = dist.PrefixStore(f"start_{restarts()}", store)  # type: ignore[attr-defined]
    dist.init_process_group(collective_backends(), store=store, rank=rank, world_size=size, timeout=TIMEOUT)


def restarts() -> int:
    """How often torchrun has started this command again after a process had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that torchrun has started with it, inside; alone where there are no others.

    Where all end by an error, process 0 tells it, after which the others end, too.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Ranks()
        return
    _make_group()
    ranks = Group()
    try:
        with ranks.together():
            yield ranks
        ranks.any(None)  # nobody leaves while another needs it
    except (Exception, KeyboardInterrupt) as error:
        # torchrun ends the others as soon as one has ended: what is to be said is said first
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if ranks.first or not isinstance(error, InputError | OSError | MemoryError | KeyboardInterrupt):
            raise
        if ranks.broken:
            raise InputError(f"process {ranks.rank}: {error}") from error
        ranks.wait_for_first()
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
    finally:
        dist.destroy_process_group()
