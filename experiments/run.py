"""The script for launchers: the same as ``unlearn run``, one process per device.

fabric run --devices 2 experiments/run.py CONFIG [key=value ...]
torchrun --nproc-per-node 2 experiments/run.py CONFIG [key=value ...]
srun python experiments/run.py CONFIG [key=value ...]            (experiments/slurm/run.sbatch)
python experiments/run.py CONFIG [key=value ...]
"""

import sys

from unlearn.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run"]
    main()
