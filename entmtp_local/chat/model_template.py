"""The chat template of a loaded model: its file's, with the texts of its vocabulary's own tokens."""

from __future__ import annotations

from entmtp_local.chat.template import ChatTemplate
from entmtp_local.native.model_file import ModelInfo
from entmtp_local.native.session import Session


def template_of(info: ModelInfo, session: Session) -> ChatTemplate:
    """Raises: ModelFileError where the file's template does not compile."""
    bos, eos = session.edge_texts()
    return ChatTemplate(
        info.chat_template or None,
        has_chatml=len(session.tokenize("<|im_start|>", add_special=False, parse_special=True)) == 1,
        bos_token=bos,
        eos_token=eos,
    )
