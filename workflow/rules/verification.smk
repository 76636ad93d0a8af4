"""Verification of all files of the runs against their records."""


# The rule has no inputs. It names damaged files, which the ordinary command recomputes.
rule verify:
    log:
        f"results/{NAME}/logs/verify.log",
    localrule: True
    conda:
        "../envs/model.yaml"
    threads: 2
    params:
        runs=lambda wildcards: [records(run) for run in RUNS.values()],
    message:
        "What is committed, against its records"
    script:
        "../scripts/verify.py"
