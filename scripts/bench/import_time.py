"""CPU seconds that imports cost: `import flashkit`, `flashkit --help`, and a worker's imports against runpod's.

`worker_import_ratio` compares everything a flashkit worker imports before its first job (the SDK, pydantic
and the loop included) with `import runpod` alone.
"""

from measure import median_cpu_seconds, print_result, python

WORKER = """
import flashkit.worker.main, flashkit.worker.runtime, pydantic
from flashkit.worker import runpod_sdk
runpod_sdk.import_sdk()
"""


def main() -> None:
    figures = {
        "import_flashkit_cpu_s": median_cpu_seconds(python("import flashkit; flashkit.cpu_endpoint")),
        "cli_help_cpu_s": median_cpu_seconds(python("import flashkit.cli; flashkit.cli.main(['--help'])")),
        "worker_imports_cpu_s": median_cpu_seconds(python(WORKER)),
        "import_runpod_cpu_s": median_cpu_seconds(python("import runpod")),
        "bare_interpreter_cpu_s": median_cpu_seconds(python("pass")),
    }
    figures["worker_import_ratio"] = figures["worker_imports_cpu_s"] / figures["import_runpod_cpu_s"]
    for name, value in figures.items():
        print(f"{name:26} {value:.3f}")
    print_result("import_time", figures)


if __name__ == "__main__":
    main()
