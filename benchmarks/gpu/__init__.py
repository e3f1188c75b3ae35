"""The parts of `on_a_gpu.py`; what runs on the GPU machine imports ltcore only once its wheels are unpacked."""
