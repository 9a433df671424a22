"""What connects the stages to Prefect and DVC, to git, and to other machines.

stages      stage (a function that DVC and Prefect can start), workspace (paths, and who may write),
            run_params (a run's parameters and params.yaml), allowed_addresses (what a run's parameters may reach)
Prefect     orchestration (a stage as a task), workspace_lock (what each flow starts with), reporting (log lines and
            progress), artifacts (pictures and verdict), terminal (what a command prints), cancellation and
            termination (how a run ends early), causes (errors in one sentence), connection, server and
            child_process (which server shows a run, and who may reach it), early_imports
DVC, git    dvc_repository (opened by one at a time), versions (up to date, restored, recorded), unused_versions (what
            nothing refers to), experiments (a run kept), run_list (all of them), lock_file (dvc.lock), lineage (what a
            report says of its origin), git, dvc_lock (waiting for DVC), repair (after a kill), dvc_program (the command
            `dvc`) and dvc_plots_page (its plots without a network)
trackers    tracking, tracked_run (what they are told), mlflow_tracker, mlflow_model, wandb_tracker
elsewhere   handoff (a stage on another machine), dvc_remote (its data), fan_out (shards on a cluster)
models      champion, served_champion (the one that is served), verdict, promotion, question (to a person), rollback,
            interrupted (a decision that a killed run left half done), comparison, cache
"""
