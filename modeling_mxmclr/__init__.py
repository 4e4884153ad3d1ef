"""MXM-CLR for transformers, a reconstruction: a dual encoder for instances seen several times in each modality."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor

from .configuration_mxmclr import MXMCLRConfig
from .modeling_mxmclr import MXMCLRModel, MXMCLROutput
from .objectives_mxmclr import OBJECTIVES
from .processing_mxmclr import MXMCLRProcessor
from .version import __version__

__all__ = ["OBJECTIVES", "MXMCLRConfig", "MXMCLRModel", "MXMCLROutput", "MXMCLRProcessor", "__version__"]

AutoConfig.register("mxmclr", MXMCLRConfig, exist_ok=True)
AutoModel.register(MXMCLRConfig, MXMCLRModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(MXMCLRConfig, MXMCLRModel, exist_ok=True)
AutoProcessor.register(MXMCLRConfig, MXMCLRProcessor, exist_ok=True)

# Checkpoints carry this package's source, so that they load with `trust_remote_code=True` where it isn't installed.
MXMCLRConfig.register_for_auto_class()
MXMCLRModel.register_for_auto_class("AutoModel")
MXMCLRProcessor.register_for_auto_class("AutoProcessor")
