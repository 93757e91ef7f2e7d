"""Text, image and audio of digits in one space: data, encoders, contrastive objective and workload."""
