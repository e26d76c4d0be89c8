"""The steps of the study: each reads files, calls the library, and writes one result.

The workflow's script calls these and nothing else; Python can call them too. One module per
stage, so that a change of code reruns the stages that use it and no other. Arguments of several:

    model: model.json, as `prepare_model` wrote it.
    blocks: What `tokenize_corpus` wrote.
    run: How the model is run, the fields of `common.Run`.
    identity: The leading columns of the table.
    statistics, seed: The keys of these names in the configuration.
    output, outputs: Where the result is written; by name, where there are several.
"""
