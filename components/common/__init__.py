"""What several steps share: the step store, execution, command lines, the TorchX launcher, tracking, report parts."""
