"""What joins the stages to Prefect and DVC, to git, and to other machines.

a stage       stage (a function that DVC and Prefect start), workspace (paths, who may write), given (its parameters)
Prefect       orchestration (a stage as a task), turn (what each flow begins with), artifacts (what a run shows),
stopping and cancellation (how it ends early), connection, server and watched (where it is seen),
causes (errors in a sentence)
DVC and git   versions (up to date, restored, recorded, kept as an experiment), git, repair (after a kill),
dvc_program (the command `dvc`)
elsewhere     handoff (a stage on another machine), remote (its data), fan_out (shards on a cluster), bounds (what
an address may reach)
models        champion, promotion, rollback and unfinished (who takes whose place), comparison, cache
"""
