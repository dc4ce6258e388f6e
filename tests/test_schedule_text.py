"""Schedules as text: what a text means, that every schedule is its text and back, and texts that are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsopt.errors import InputError
from gsopt.schedule_text import parse_schedule
from gsopt.schedules import (
    Constant,
    Cosine,
    Exponential,
    LogLinear,
    MultiStepDecay,
    Product,
    Schedule,
    Sequential,
    StepDecay,
    WarmUp,
)

RUN = 2000  # iterations

TEXTS = {  # text: the schedule in a run of RUN, and how that is written where it is not the same
    "constant": (Constant(), None),
    "constant:0.5": (Constant(0.5), None),
    "exp:0.01": (LogLinear(0.01, RUN), "exp:0.01@2000"),
    "exp:0.01@500": (LogLinear(0.01, 500), None),
    "exp:0.01:100:0.2": (LogLinear(0.01, RUN, 100, 0.2), "exp:0.01:100:0.2@2000"),
    "exp:0.01:100": (LogLinear(0.01, RUN, 100), "exp:0.01:100:0.01@2000"),
    "gamma:0.995": (Exponential(0.995), None),
    "step:1000:0.1": (StepDecay(1000, 0.1), None),
    "multistep:500:0.1": (MultiStepDecay((500,), 0.1), None),
    "multistep:500:1000:1e6:0.1": (
        MultiStepDecay((500, 1000, 1_000_000), 0.1),
        "multistep:500:1000:1000000:0.1",
    ),
    "cosine:0": (Cosine(0.0, RUN), "cosine:0@2000"),
    "warmup:100": (WarmUp(100), None),
    "warmup:100:0.5": (WarmUp(100, 0.5), None),
    "cosine:0.01,warmup:100": (Product((Cosine(0.01, RUN), WarmUp(100))), "cosine:0.01,warmup:100@2000"),
    "cosine:0.01,warmup:100@300": (Product((Cosine(0.01, 300), WarmUp(100))), None),
    " cosine:0.01 , warmup:100 @300 ": (
        Product((Cosine(0.01, 300), WarmUp(100))),
        "cosine:0.01,warmup:100@300",
    ),
    "warmup:100 then constant@500 then cosine:0.01": (
        Sequential((WarmUp(100), Constant(), Cosine(0.01, 1400)), (100, 500)),
        "warmup:100 then constant@500 then cosine:0.01@1400",
    ),
    "warmup:100@400 then exp:0.1@200 then constant:0.1": (
        Sequential((WarmUp(100), LogLinear(0.1, 200), Constant(0.1)), (400, 200)),
        None,
    ),
    "warmup:10,exp:0.1@200 then step:5:0.5": (
        Sequential((Product((WarmUp(10), LogLinear(0.1, 200))), StepDecay(5, 0.5)), (200,)),
        None,
    ),
    "(warmup:100 then exp:0.1),step:50:0.5": (
        Product((Sequential((WarmUp(100), LogLinear(0.1, 1900)), (100,)), StepDecay(50, 0.5))),
        "(warmup:100 then exp:0.1@1900),step:50:0.5",
    ),
    "(exp:0.1@100)@300 then constant": (Sequential((LogLinear(0.1, 100), Constant()), (300,)), None),
    "(exp:0.1@100),cosine:0.5@300": (
        Product((LogLinear(0.1, 100), Cosine(0.5, 300))),
        "(exp:0.1@100),(cosine:0.5@300)",
    ),
    "((constant))": (Constant(), "constant"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_back(text):
    schedule, written = TEXTS[text]
    assert parse_schedule(text, RUN) == schedule
    assert str(schedule) == written or text


factors = st.floats(0, 1e6)
rates = st.floats(1e-6, 1.0, exclude_min=True)  # of what is taken to the power of the step
lengths = st.integers(1, 10**6)
leaves = st.one_of(
    st.builds(Constant, factors),
    st.builds(LogLinear, rates, lengths, st.integers(0, 10**6), st.floats(0, 1)),
    st.builds(Exponential, rates),
    st.builds(StepDecay, lengths, rates),
    st.builds(MultiStepDecay, st.sets(lengths, min_size=1, max_size=4).map(sorted), rates),
    st.builds(Cosine, factors, lengths),
    st.builds(WarmUp, lengths, st.floats(0, 1)),
)


def compound(inner: st.SearchStrategy[Schedule]) -> st.SearchStrategy[Schedule]:
    several = st.lists(inner, min_size=2, max_size=3)
    chains = several.flatmap(
        lambda parts: st.builds(
            Sequential, st.just(parts), st.lists(lengths, min_size=len(parts) - 1, max_size=len(parts) - 1)
        )
    )
    return st.builds(Product, several) | chains


@given(schedule=st.recursive(leaves, compound, max_leaves=6), iterations=lengths)
def test_every_schedule_is_its_text_and_back_in_a_run_of_any_length(schedule, iterations):
    assert parse_schedule(str(schedule), iterations) == schedule


pieces = st.sampled_from(
    [
        "exp",
        "cosine",
        "warmup",
        "constant",
        ":",
        ",",
        "@",
        "(",
        ")",
        " then ",
        " ",
        "0.1",
        "5",
        "-1",
        "nan",
        "x",
    ]
)


@given(text=st.lists(pieces, max_size=12).map("".join), iterations=st.integers(1, 100))
def test_any_text_is_a_schedule_or_an_error_that_quotes_it(text, iterations):
    schedule, complaint = None, ""
    try:
        schedule = parse_schedule(text, iterations)
    except InputError as error:
        complaint = str(error)
    if schedule is None:
        assert complaint.startswith(f'schedule "{text}": ')
    else:
        assert parse_schedule(str(schedule), iterations) == schedule
        assert schedule(iterations) >= 0


BAD_TEXTS = {
    "": '"" is not a schedule; choose from constant',
    "linear:0.1": '"linear" is not a schedule; choose from constant.*exp:FINAL_FACTOR',
    "exp": '"exp": expected exp:FINAL_FACTOR.*found 0 arguments',
    "exp:1:2:3:4": "found 4 arguments",
    "exp:fast": '"fast" is not a number; expected exp:FINAL_FACTOR',
    "exp:-1": '"exp:-1": final factor: expected a number, more than 0, found -1',
    "exp:0": "final factor: expected a number, more than 0, found 0",
    "exp:nan": "final factor: expected a number, more than 0, found nan",
    "exp:inf": "final factor: expected a number, more than 0, found inf",
    "exp:0.1:inf": "steps: expected a whole number, found inf",
    "exp:0.1:10:nan": "delay factor: expected 0 to 1, found nan",
    "constant:nan": "factor: expected a number, 0 or more, found nan",
    "constant:-5": "factor: expected a number, 0 or more, found -5",
    "gamma:inf": "gamma: expected a number, more than 0, found inf",
    "gamma:2": '"gamma:2": grows beyond all numbers in 2000 steps; give smaller factors',
    "constant:1e308,constant:1e308": '"constant:1e308,constant:1e308": grows beyond all numbers',
    "exp:0.1:2.5": "steps: expected a whole number, found 2.5",
    "gamma:": '"" is not a number',
    "step:1000": '"step:1000": expected step:STEP_SIZE:GAMMA, found 1 arguments',
    "step:0:0.1": "step size: expected a whole number, at least 1, found 0",
    "multistep:0.1": "expected multistep:MILESTONE",
    "multistep:100:50:0.1": "milestones: expected a whole number, at least 101, found 50",
    "warmup:100:2": "start factor: expected 0 to 1, found 2",
    "cosine:0.01,warm:100": '"warm" is not a schedule; choose from',
    "cosine:0.01,": "expected a schedule, found the end",
    ",cosine:0.01": 'expected a schedule, found ","',
    "cosine:0.01 warmup:100": '"warmup:100": expected ",", "@", "then" or the end before it',
    "constant then exp:0.1": '"constant": how long does it last. write "constant@STEPS then ..."',
    "warmup:5,gamma:0.5 then exp:0.1": '"warmup:5,gamma:0.5": how long does it last',
    "constant@ then exp:0.1": '"constant@then": expected a number of steps after "@", found "then"',
    "constant@0 then exp:0.1": 'expected a number of steps after "@", found "0"',
    "constant@1.5 then exp:0.1": 'expected a number of steps after "@", found "1.5"',
    "warmup:100 then": "expected a schedule, found the end",
    "constant@500": '"constant@500": "@500" has no effect',
    "(constant)@500": '"@500" has no effect',
    "constant@2000 then exp:0.1": '"exp:0.1": would begin at step 2000 of 2000; .*"exp:0.1@STEPS"',
    "(constant": r'"\(constant": expected "\)", found the end',
    "(constant))": r'"\)": expected ",", "@", "then" or the end before it',
    "()": r'expected a schedule, found "\)"',
}


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_bad_text_is_quoted(text):
    with pytest.raises(InputError, match=BAD_TEXTS[text]) as caught:
        parse_schedule(text, RUN)
    assert f'schedule "{text}"' in str(caught.value)


def test_parentheses_without_end():
    with pytest.raises(InputError, match=r"\.\.\.\": parentheses in too many parentheses"):
        parse_schedule("(" * 5000 + "constant" + ")" * 5000, RUN)
