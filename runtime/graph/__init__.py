"""The engine `graph`: fused passes over fixed addresses, captured as CUDA graphs on a GPU, called plainly on a CPU."""
