"""Small vision-language models, distilled from larger ones: DistillVLM (arXiv 2104.02096).

losses/       one loss a file: attention, NCE on hidden states, hidden MSE, logits
data/         samples of several formats
"""
