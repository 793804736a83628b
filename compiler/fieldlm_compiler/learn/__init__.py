"""Records in, adapter out: curate, cluster into tasks, dataset, tune, evaluate."""
