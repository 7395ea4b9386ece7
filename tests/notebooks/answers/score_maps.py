"""A right answer to each exercise, and wrong ones."""


def field(layers):
    seen, step = 1, 1
    for kernel, stride in layers:
        seen, step = seen + (kernel - 1) * step, step * stride
    return seen


def stride_too_early(layers):
    seen, step = 1, 1
    for kernel, stride in layers:
        step *= stride
        seen += (kernel - 1) * step
    return seen


a = ((15, 20), [(48, 64), (20, 15), (16, 20), 300])
b = (202, [201, 404, 403, 100])
c = (field, [stride_too_early, lambda layers: 1 + sum(kernel - 1 for kernel, _ in layers), lambda: 1])
