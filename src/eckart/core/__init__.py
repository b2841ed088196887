"""What both wings share: the kernels of this machine and the model directory."""
