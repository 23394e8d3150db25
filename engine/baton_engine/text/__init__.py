"""Text to token ids and back: tokenizer, chat template, detokeniser, output of one choice.

Belongs here: everything that knows both characters and tokens; gateway and workers use it. Does not belong here:
tensors, scheduling, the shapes of an API's answers.
"""
