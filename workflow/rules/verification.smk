"""Verification: compares everything that the runs have left with its records."""


# No inputs: what is damaged or stale is named here, and made again by the ordinary command.
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
