"""The kernels: one module an op, its public function, its shapes for the compiler and its driver."""
