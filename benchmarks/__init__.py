"""What the kernels cost: counts that do not depend on the machine, and times."""
