"""What a prediction is judged by. A score is one entry in `table`, which needs numpy alone.

No file but `metrics` needs torchmetrics, which takes 200 MB: a report has none.
"""
