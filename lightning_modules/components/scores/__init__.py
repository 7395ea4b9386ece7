"""What a prediction is judged by. No file but `metrics` needs torchmetrics, which takes 200 MB: a report has none."""
