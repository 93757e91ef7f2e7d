"""Check the package on a machine with a GPU; bash launch/gpu_check.sh starts it."""
