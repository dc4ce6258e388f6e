"""Random sequences of all that may happen to Gaussians, against a slow model of the rules row by row.

Training, freezing and thawing, locking, clone, split, prune and reset, by surgery and by the default
strategy, saving and loading with other groups in another order: after each of them every value, moment,
gradient and lock is what `row_model` and `row_refinement` say, to the bit where nothing was computed.
"""

import tempfile
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import row_refinement
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from row_compare import assert_same
from row_model import BETAS, EPS, MOMENTUM, Attribute, RowModel, adam, adamw, sgd
from row_refinement import HEIGHT, WIDTH, Observation, Seen

import gsopt
from gsopt import InputError, checkpoint, surgery
from gsopt.model import ATTRIBUTES, GaussianModel
from gsopt.strategy import DefaultStrategy

MOST_ROWS, UNLIMITED = 16, 99


def of_torch(cls, **options):
    return lambda groups: cls(groups, lr=0.0, **options)


def of_gsopt(name, **options):
    return lambda groups: gsopt.build_optimizer(name, groups, **options)


OPTIMIZERS = {  # how it is built, and its rule
    "torch adam": (of_torch(torch.optim.Adam, betas=BETAS, eps=EPS), adam),
    "kernel adam": (of_gsopt("adam", native=True), adam),
    "torch adamw": (of_torch(torch.optim.AdamW, betas=BETAS, eps=EPS), adamw),
    "kernel adamw": (of_gsopt("adamw", native=True), adamw),
    "sgd": (of_gsopt("sgd", momentum=MOMENTUM, nesterov=True), sgd),
}
RATES = {name: 0.01 * (place + 1) for place, name in enumerate(ATTRIBUTES)}  # all different
DECAYS = {"xyz": 0.1, "feature_rest": 0.3, "opacity": 0.2}
FATES = {  # of an attribute: its GroupSpec, beside the rates
    "trained": {},
    "frozen": {"frozen": True},
    "excluded": {"optimize": False},
    "@0:2": {"freeze": ((0, 2),)},
    "@1:3,5:": {"freeze": ((1, 3), (5, None))},
}
fates = st.lists(
    st.sampled_from(["trained"] * 5 + list(FATES)), min_size=len(ATTRIBUTES), max_size=len(ATTRIBUTES)
).filter(lambda fates: set(fates) != {"excluded"})
names_of = st.lists(st.sampled_from(ATTRIBUTES), min_size=1, max_size=3, unique=True)
requests = st.fixed_dictionaries(  # of who goes on from a state
    {
        "rows": st.integers(0, 2),  # of the model before it is loaded
        "optimizer": st.sampled_from([name for name in OPTIMIZERS if name != "sgd"]),
        "fates": fates,
        "order": st.permutations(ATTRIBUTES),  # of the groups
    }
)
seeds = st.integers(0, 2**32 - 1)


def random_mask(seed: int, share: float) -> list[bool]:
    """About this share of the rows. Not drawn bit by bit, as that gives no row at all far too often."""
    return (np.random.default_rng(seed).random(MOST_ROWS) < share).tolist()


masks = st.builds(random_mask, seeds, st.sampled_from([0.5, 0.2, 0.8, 1.0]))

UNIT = 2.0**-14  # of scores: these are multiples of 5/6 UNIT and never near the threshold
DENSIFY = {
    "grow_grad2d": 7.7 * UNIT,
    "grow_scale2d": 0.05,
    "grow_scale3d": 0.01,
    "prune_opa": 0.005,
    "prune_scale2d": 0.15,
    "prune_scale3d": 0.1,
    "refine_start_iter": 2,
    "refine_stop_iter": 100,
    "refine_every": 3,
    "reset_every": 20,
}
REFINE_STEPS = {"grow": 3, "grow, prune large": 21, "reset": 20, "grow and reset": 60, "none": 7, "late": 120}


def random_values(rows: int, sh_degree: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Gaussians of which a refinement finds some too small, large, faint or fine. Each float32 [N, ...]"""
    shapes = {name: p.shape[1:] for name, p in GaussianModel(0, sh_degree).named_parameters()}
    values = {name: random.normal(size=(rows, *shape)) for name, shape in shapes.items()}
    values["scaling"] = random.uniform(-7, -2, size=(rows, 1)) + random.uniform(0, 0.5, size=(rows, 3))
    values["opacity"] = random.uniform(-6, 4, size=(rows, 1))
    return {name: of_all.astype(np.float32) for name, of_all in values.items()}


def tensors(values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in values.items()}


def slow_attributes(fates: Iterable[str]) -> dict[str, Attribute]:
    """What the specs mean, at step 0."""
    attributes = {}
    for name, fate in zip(ATTRIBUTES, fates, strict=True):
        attribute = Attribute(RATES[name], DECAYS.get(name, 0.0), excluded=fate == "excluded")
        attribute.windows = FATES[fate].get("freeze", ())
        attribute.frozen = fate == "frozen" or attribute.in_window(0)
        attributes[name] = attribute
    return attributes


def observations(rows: int, cameras: int, random: np.random.Generator) -> tuple[Observation, dict]:
    """What some cameras see, and the same as gsopt.rasterization says it."""
    scores = random.choice([0, 1, 2, 4], size=(cameras, rows)) * random.choice([-1, 1], size=(cameras, rows))
    gradients = (scores * UNIT / cameras)[..., None] * np.array([3 / (WIDTH / 2), 4 / (HEIGHT / 2)])
    radii = random.choice([0, 1, 2, 3, 4, 9, 10], size=(cameras, rows, 2), p=[0.1, *[0.15] * 6])
    means2d = torch.zeros(cameras, rows, 2, requires_grad=True)
    means2d.grad = torch.from_numpy(gradients.astype(np.float32))
    sizes = {"width": WIDTH, "height": HEIGHT, "n_cameras": cameras}
    info = {"means2d": means2d, "radii": torch.from_numpy(radii.astype(np.int32)), **sizes}
    seen = [
        [Seen(tuple(g), tuple(r)) for g, r in zip(*both, strict=True)]
        for both in zip(gradients, radii, strict=True)
    ]
    return seen, info


class GaussiansAgainstRows(RuleBasedStateMachine):
    """A model with its optimizer, and the slow model of both."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.saved = None  # the slow model of the file

    def teardown(self):
        self.folder.cleanup()

    @initialize(
        rows=st.sampled_from([8, 7, 6, 5, 2, 1, 0]),
        sh_degree=st.integers(0, 1),
        optimizer=st.sampled_from(list(OPTIMIZERS)),
        fates=fates,
        lock=st.none() | st.tuples(masks, names_of),
        seed=seeds,
    )
    def build(self, rows, sh_degree, optimizer, fates, lock, seed):
        self.step, self.sh_degree = 0, sh_degree
        values = random_values(rows, sh_degree, np.random.default_rng(seed))
        self.model = GaussianModel(rows, sh_degree)
        self.model.load_state_dict(tensors(values))
        self.optimizer, self.specs = self.optimizer_of(self.model, optimizer, fates, ATTRIBUTES)
        self.slow = RowModel(values, slow_attributes(fates), OPTIMIZERS[optimizer][1])
        if lock:
            self.lock_or_unlock(*lock, locked=True)

    @staticmethod
    def optimizer_of(model, optimizer, fates, order):
        specs = {
            name: gsopt.GroupSpec(RATES[name], weight_decay=DECAYS.get(name, 0.0), **FATES[fate])
            for name, fate in zip(ATTRIBUTES, fates, strict=True)
        }
        groups = gsopt.build_groups([(name, model.get_parameter(name)) for name in order], specs)
        return OPTIMIZERS[optimizer][0](groups), specs

    def chosen(self, mask: list[bool], movable: bool = True) -> list[int]:
        """Places of the rows that a mask means; without locked ones if `movable`."""
        movables = self.slow.movable()
        return [place for place, may in enumerate(movables) if mask[place] and (may or not movable)]

    def room(self) -> int:
        return MOST_ROWS - len(self.slow)

    # ---------------------------------------------------------------------------- training

    def backward(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        gsopt.apply_freezes(self.optimizer, self.specs, self.step)
        self.slow.apply_windows(self.step)
        gradients = {}
        for name, parameter in self.model.named_parameters():
            size = random.choice([0, 1e-6, 1], size=parameter.shape, p=[0.2, 0.2, 0.6])
            gradients[name] = (random.normal(size=parameter.shape) * size).astype(np.float32)
        self.slow.backward(gradients)
        for name, gradient in tensors(gradients).items():
            parameter = self.model.get_parameter(name)
            if parameter.requires_grad:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def update(self) -> None:
        with gsopt.hold_locked(self.model, self.optimizer):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.slow.step()
        self.step += 1

    @rule(
        seed=seeds,
        does=st.sampled_from(
            ["backward update", "backward update " * 3, "backward", "backward backward update", "update"]
        ),
    )
    def train(self, seed, does="backward update"):
        for k, act in enumerate(does.split()):
            if act == "backward":
                self.backward(seed + k)
            else:
                self.update()
            self.agree()

    # ------------------------------------------------------------------- frozen and locked

    @rule(names=names_of, frozen=st.booleans())
    def freeze_or_thaw(self, names, frozen):
        act = gsopt.freeze if frozen else gsopt.unfreeze
        if any(self.slow.attributes[name].excluded for name in names):
            with pytest.raises(InputError, match="no group has the name"):
                act(self.optimizer, names)
        else:
            act(self.optimizer, names)
            self.slow.set_frozen(names, frozen)

    @rule(mask=masks, names=names_of, locked=st.sampled_from([True, False, True]))
    def lock_or_unlock(self, mask, names, locked):
        rows = self.chosen(mask, movable=False)
        (gsopt.lock if locked else gsopt.unlock)(self.model, torch.tensor(rows, dtype=torch.int64), names)
        self.slow.set_locked(rows, names, locked)

    # -------------------------------------------------------------------------------- rows

    @rule(
        act=st.sampled_from(["clone", "split", "prune", "overwrite"]),
        mask=masks,
        name=st.sampled_from(ATTRIBUTES),
        seed=seeds,
    )
    def change_rows(self, act, mask, name, seed):
        getattr(self, act)(mask, name, np.random.default_rng(seed))

    def clone(self, mask, _, __):
        rows = self.chosen(mask, movable=False)[: self.room()]
        values = {name: p.detach()[rows] for name, p in self.model.named_parameters()}
        surgery.append(self.model, ATTRIBUTES, self.optimizer, values)
        self.slow.clone(rows)

    def split(self, mask, _, random):
        rows = self.chosen(mask)[: self.room()]
        kept = [place for place in range(len(self.slow)) if place not in rows]
        halves = random_values(2 * len(rows), self.sh_degree, random)
        mask = torch.tensor([place in kept for place in range(len(self.slow))], dtype=torch.bool)
        surgery.resize(self.model, ATTRIBUTES, self.optimizer, mask, tensors(halves))
        self.slow.keep(kept)
        self.slow.append(halves)

    def prune(self, mask, _, random):
        """And put the others in another order."""
        rows = self.chosen(mask)
        kept = [place for place in range(len(self.slow)) if place not in rows]
        random.shuffle(kept)
        surgery.keep(self.model, ATTRIBUTES, self.optimizer, torch.tensor(kept, dtype=torch.int64))
        self.slow.keep(kept)

    def overwrite(self, mask, name, random):
        rows = self.chosen(mask)
        values = random_values(len(rows), self.sh_degree, random)[name]
        places = torch.tensor(rows, dtype=torch.int64)
        surgery.overwrite(self.model, self.optimizer, {name: torch.from_numpy(values.copy())}, places)
        self.slow.overwrite(name, rows, values)

    @precondition(lambda self: not all(self.slow.movable()))
    @rule(mask=masks, name=st.sampled_from(ATTRIBUTES))
    def locked_rows_are_refused(self, mask, name):
        """Whichever of its attributes are locked, such a row can neither go nor be overwritten."""
        locked = self.slow.movable().index(False)
        kept = torch.tensor([k for k in self.chosen(mask, movable=False) if k != locked], dtype=torch.int64)
        zeros = torch.zeros_like(self.model.get_parameter(name))
        with pytest.raises(ValueError, match="locked ones would be dropped"):
            surgery.keep(self.model, ATTRIBUTES, self.optimizer, kept)
        with pytest.raises(ValueError, match="locked ones would be overwritten"):
            surgery.overwrite(self.model, self.optimizer, {name: zeros})

    @rule(
        step=st.sampled_from(["grow", "grow, prune large"] * 2 + list(REFINE_STEPS)).map(REFINE_STEPS.get),
        cameras=st.sampled_from([[1], [2], [1, 2], [2, 1, 1], []]),  # in each step that is observed
        limit=st.sampled_from([UNLIMITED, 2, 1, 0, 3, UNLIMITED]),
        options=st.fixed_dictionaries(
            {
                "refine_scale2d_stop_iter": st.sampled_from([0, 100]),
                "revised_opacity": st.booleans(),
                "pause_refine_after_reset": st.sampled_from([0, 0, 2]),
            }
        ),
        seed=seeds,
    )
    def refine(self, step, cameras, limit, options, seed):
        """The default strategy, from what it observes to what it does."""
        count = len(self.slow)
        most = min(count + limit, MOST_ROWS)
        if limit == UNLIMITED:
            most = None if 3 * count <= MOST_ROWS else MOST_ROWS  # a Gaussian may be cloned and split
        chosen = {**DENSIFY, **options, "max_gaussians": most}
        strategy, random, seen = DefaultStrategy(**chosen), np.random.default_rng(seed), []
        for number in cameras:
            what, info = observations(count, number, random)
            strategy.observe(self.model, info, step)
            seen.append(what)
            self.train(seed)
        later = DefaultStrategy(**chosen)
        later.load_state_dict(strategy.state_dict())
        done = later.refine(self.model, self.optimizer, step, torch.Generator().manual_seed(seed))
        expected = row_refinement.refine(
            self.slow,
            seen,
            chosen,
            step,
            lambda n: torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)).double().numpy(),
        )
        assert (done.cloned, done.split, done.pruned, done.reset) == expected
        assert most is None or self.model.num_gaussians <= most

    # ------------------------------------------------------------------------------- files

    @rule(act=st.sampled_from(["save", "go_back", "go_back", "hand_over"]), request=requests, seed=seeds)
    def files(self, act, request, seed):
        getattr(self, act)(request)
        self.agree()
        self.train(seed)

    def save(self, _=None):
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        checkpoint.save(Path(self.folder.name) / "saved.pt", {**state, "step": self.step})
        self.saved = deepcopy(self.slow)

    def go_back(self, request):
        if self.saved is None:
            self.save()
        state = checkpoint.load(Path(self.folder.name) / "saved.pt")
        self.slow, self.step = deepcopy(self.saved), state["step"]
        self.go_on_from(state, **request)

    def hand_over(self, request):
        """To another model and optimizer in memory; what then happens to the old ones is their own affair."""
        old, state = self.model, {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        old_moments = [t for of_one in self.optimizer.state.values() for t in of_one.values()]
        self.go_on_from(state, **request)
        with torch.no_grad():
            for tensor in (*old.parameters(), *old_moments):
                tensor.add_(1)
            if old.locks is not None:
                old.locks.logical_not_()

    def go_on_from(self, state, rows, optimizer, fates, order):
        """A fresh model, groups in another order, frozen and excluded ones of their own."""
        if self.slow.update is sgd:
            optimizer = "sgd"  # the only one with its kind of moments
        self.model = GaussianModel(rows, self.sh_degree)
        self.model.load_state_dict(state["model"])
        self.optimizer, self.specs = self.optimizer_of(self.model, optimizer, fates, order)
        before = self.slow
        self.slow = before.loaded(slow_attributes(fates), OPTIMIZERS[optimizer][1])

        was = {name for name, attribute in before.attributes.items() if not attribute.excluded}
        now = {name for name, attribute in self.slow.attributes.items() if not attribute.excluded}
        if was != now:
            with pytest.raises(ValueError, match="does not fit the optimizer"):
                gsopt.load_optimizer_state(self.optimizer, state["optimizer"])
            assert not self.optimizer.state
        report = gsopt.load_optimizer_state(self.optimizer, state["optimizer"], strict=was == now)
        assert (set(report.matched), set(report.missing)) == (was & now, now - was)
        assert set(report.unexpected) == was - now
        assert set(report.fresh) == {name for name in was & now if not before.attributes[name].updates}
        assert not any((report.shape_mismatch, report.state_mismatch, report.unused))

    @invariant()
    def agree(self):
        assert_same(self.model, self.optimizer, self.slow)


class GaussiansAgainstRowsForLong(GaussiansAgainstRows):
    """The same with more examples, others in each run."""


GaussiansAgainstRows.TestCase.settings = settings(
    max_examples=80, stateful_step_count=25, deadline=None, derandomize=True
)
GaussiansAgainstRowsForLong.TestCase.settings = settings(
    max_examples=2000, stateful_step_count=40, deadline=None
)
TestGaussiansAgainstRows = GaussiansAgainstRows.TestCase
TestGaussiansAgainstRowsForLong = pytest.mark.slow(GaussiansAgainstRowsForLong.TestCase)
