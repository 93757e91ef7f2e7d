"""What only a GPU can show; `bash launch/gpu_check.sh` runs it, with `--cpu` as a rehearsal on the host."""
