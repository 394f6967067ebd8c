"""User and item embeddings: a causal transformer over events as tokens, trained by sampled softmax.

specification   the dials, most of them derived from the data, recorded beside the weights
holdout         which events the training may see, and which wanted events of which users validate it
content         what is known of an item besides its id: category, words of the title, a given vector; hashed ids
batching        timelines -> flat tokens -> batches of segments of like length
model           tokens -> one state per event; item vectors live in the same space
objective       next action and dense all action: what each event shall predict; negatives; the loss
optimiser       AdamW, dense or of the touched rows alone, and the running average of the weights
training        the epoch loop: validation, early stopping, resumable state, one or many workers
inference       histories -> one unit vector per user, in batch and online alike
growth          an encoder meets a newer catalogue: new items at once, or the weights to train on from
alignment       a retrain is turned onto its parent's space, so that what was learnt on old vectors reads new ones
artefact        the trained encoder as safetensors + JSON
"""
