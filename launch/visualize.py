"""Draw masks, a trained model's predictions and attention, and training logs.

python launch/visualize.py --visualize-masks --num-samples 6
python launch/visualize.py --checkpoint DIR_OR_FILE --image FILE --visualize-predictions
python launch/visualize.py --checkpoint DIR_OR_FILE --image FILE --visualize-attention
python launch/visualize.py --checkpoint DIR_OR_FILE --image FILE --visualize-all --log-dir results/logs
python launch/visualize.py --visualize-training --log-dir results/logs
"""

import sys

from hjepa_dist_metrics.reference.visualize import main

if __name__ == "__main__":
    sys.exit(main())
