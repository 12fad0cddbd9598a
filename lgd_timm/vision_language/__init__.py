"""Small vision-language models, distilled from larger ones: DistillVLM (arXiv 2104.02096).

recipe.py     settings of task, data, text, regions, backbone, transformer, distillation
data/         samples of several formats
text.py       words as tokens; masking
regions.py    boxes of a grid, of the data, or of a detector
features.py   features of boxes on a frozen backbone's map, computed once
batch.py      samples as tokens, and batches of them
masks.py      which tokens see which
model.py      the transformer, with heads for words and answers
initial.py    its first weights: another run's, or a BERT's
losses/       one loss a file: attention, NCE on hidden states, hidden MSE, logits
learner.py    a student with its losses
teacher.py    a frozen teacher, computed with every batch or stored
job.py        one training as the training engine sees it
run.py        from a recipe to a run's folder
generate.py   captions by beam search, or drawn at random
metrics.py    CIDEr-D, BLEU-4, ROUGE-L, METEOR, VQA's accuracy
scores.py     these of a model
self_critical.py   training by the CIDEr-D of captions that the model draws
folder.py     a model as a folder, saved and opened
describe.py   captions and answers for plain pictures
stock.py      a student that stock transformers loads
"""
