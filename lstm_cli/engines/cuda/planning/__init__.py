"""Plans of persistent kernels, chosen by a cost model that is unmeasured on any GPU.

`plan` describes one plan, and `plan_search` finds the fastest.
"""
