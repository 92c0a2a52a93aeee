version: str
torch_version: str
compiler: str

def cpu_capability() -> str: ...
