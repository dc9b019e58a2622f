"""PyTorch's files: torch.save's archive and safetensors, read and written without PyTorch.

Start at `reader` and `writer`. `unpickler` reads a pickle safely, `modules` and
`module_recognition` group the tensors. PyTorch's GRU always applies its reset gate after the
product, so no file says which; `cells.gru` defaults to it.
"""
