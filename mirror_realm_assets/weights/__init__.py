"""Weights: which models exist, where their weights come from, and proof that a file is the right one.

What belongs here: the registry of models (`registry`), fetching, converting and verifying their weights (`fetch`,
`convert`, `ncnn`; `release` and `download` for those that no package carries), models that a person adds (`added`,
`adding`, `checkpoint`, `open_clip_networks`), mixing two weights of one network (`denoise`), and the choice of device
and number format that every model shares (`hardware`). What does not: running a model (`enhance`, `understand`).
Nothing here reaches the network except fetching, which a person asks for.
"""
