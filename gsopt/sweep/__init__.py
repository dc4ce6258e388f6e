"""What `gsopt freeze-sweep` does: a grid of runs, each a process, and what came of them side by side.

`grid` says which runs there are, `runner` has them trained, `progress` shows it; `results` reads what they
left, and `table`, `plot` and `hparams` write it for people, programs and TensorBoard.
"""
