"""Repeat the test figures of a finished run from its folder: the same as `crosspruner-eval`.

python scripts/evaluate.py run_dir=logs/train/runs/STAMP
"""

from crosspruner.cli import evaluate

if __name__ == "__main__":
    evaluate()
