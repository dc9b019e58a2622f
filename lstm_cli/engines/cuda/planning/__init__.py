"""Plans of persistent kernels, chosen by a cost model that is unmeasured on any GPU."""
