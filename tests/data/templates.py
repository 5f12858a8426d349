"""Chat templates that behave as published ones do, and small tokenizers that have them."""

import functools
import tempfile

from jaxs1.data.tokenizer import CHAT_TEMPLATE, load_tokenizer, train_tokenizer

TEXTS = ["First, one and one.\nSo two. The answer is 2.", "user assistant system tool think answer"]
_END = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
_TURN = "'<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n'"

#: Qwen2.5's: a system message of its own, any role, no field but role and content.
QWEN25 = (
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}"
    "{%- endif %}" + CHAT_TEMPLATE
)
#: Qwen3's: known roles only, thinking in a field or in tags, kept behind the last question only;
#: a switch that turns thinking off; tools and calls.
QWEN3 = (
    "{%- if tools %}{{- '<|im_start|>system\\nTools:' }}{%- for t in tools %}"
    "{{- '\\n' + (t | tojson) }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- set ns = namespace(question=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.question = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set c = m.content if m.content is string else '' %}"
    "{%- if m.role in ('user', 'system') %}{{- " + _TURN + " }}"
    "{%- elif m.role == 'tool' %}{{- '<|im_start|>user\\n<result>' + c + '<|im_end|>\\n' }}"
    "{%- elif m.role == 'assistant' %}{%- set r = m.reasoning_content or '' %}"
    "{%- if not r and '</think>' in c %}"
    "{%- set r = c.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set c = c.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.question and (loop.last or r) %}"
    "{%- set c = '<think>\\n' + r.strip('\\n') + '\\n</think>\\n\\n' + c %}{%- endif %}"
    "{{- '<|im_start|>assistant\\n' + c }}{%- for t in m.tool_calls or [] %}"
    "{{- '\\n<call>' + (t.function | tojson) }}{%- endfor %}{{- '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}" + _END + "{%- if enable_thinking is defined and not "
    "enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
#: R1 distills': other markers, prompts that end in an open <think>.
R1 = (
    "{{- '<s>' }}{%- for m in messages %}{%- if m.role == 'user' %}{{- '<User>' + m.content }}"
    "{%- elif m.role == 'assistant' %}{{- '<Bot>' + m.content + '</s>' }}"
    "{%- else %}{{- m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<Bot><think>\\n' }}{%- endif %}"
)
#: The later R1's: the same, and every turn without its thinking.
R1_STRIPS = R1.replace(
    "'<Bot>' + m.content + '</s>'", "'<Bot>' + m.content.split('</think>')[-1] + '</s>'"
)
#: QwQ's: ChatML, thinking opened by the prompt, earlier turns without theirs.
QWQ = (
    "{%- for m in messages %}{%- set c = m.content %}"
    "{%- if m.role == 'assistant' and not loop.last %}{%- set c = c.split('</think>')[-1] %}"
    "{%- endif %}{{- " + _TURN + " }}{%- endfor %}" + _END + "{{- '<think>\\n' }}{%- endif %}"
)
#: DeepSeek V3.1's: a switch of another name, off by default; no line break behind the tag.
V31 = (
    "{%- if not thinking is defined %}{%- set thinking = false %}{%- endif %}{{- '<s>' }}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '<User>' + m.content }}"
    "{%- elif m.role == 'assistant' %}{{- '<Bot>' }}{%- if not '</think>' in m.content %}"
    "{{- '</think>' }}{%- endif %}{{- m.content + '</s>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<Bot>' + ('<think>' if thinking else '</think>') }}"
    "{%- endif %}"
)
#: ChatML with a mark at the end of the conversation.
MARKED = CHAT_TEMPLATE.replace("{%- endfor %}", "{%- endfor %}{{- '<end>' }}", 1).replace(
    "{{- '<end>' }}", "{%- if not add_generation_prompt %}{{- '<end>' }}{%- endif %}"
)
#: Writes names, and thinking in a field that is called otherwise.
NAMED = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + (' ' + m.name if m.name else '') + "
    "'\\n' }}{%- if m.reasoning %}{{- '<think>\\n' + m.reasoning + '\\n</think>\\n\\n' }}"
    "{%- endif %}{{- m.content + '<|im_end|>\\n' }}{%- endfor %}" + _END + "{%- endif %}"
)

TAGS = ("<think>", "</think>")
#: name -> template, tokens besides ChatML's
TEMPLATES = {
    "chatml": (CHAT_TEMPLATE, ()),
    "qwen2.5": (QWEN25, ()),
    "qwen3": (QWEN3, (*TAGS, "<result>", "<call>")),
    "r1": (R1, (*TAGS, "<s>", "</s>", "<User>", "<Bot>")),
    "r1 strips": (R1_STRIPS, (*TAGS, "<s>", "</s>", "<User>", "<Bot>")),
    "qwq": (QWQ, TAGS),
    "v3.1": (V31, (*TAGS, "<s>", "</s>", "<User>", "<Bot>")),
    "marked": (MARKED, ("<end>",)),
    "named": (NAMED, TAGS),
}
#: Templates whose conversations are s1's unless something else is set.
S1 = ("chatml", "qwen2.5", "marked")


@functools.cache
def folder_with(name, *words):
    """A folder with a tokenizer that has a template, and more tokens."""
    template, own = TEMPLATES[name]
    folder = tempfile.mkdtemp(prefix="jaxs1-template-")
    train_tokenizer(TEXTS, folder, vocabulary=300, words=(*own, *words))
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    if "</s>" in own:
        tokenizer.eos_token = "</s>"
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def tokenizer_with(name):
    """A tokenizer that has a template."""
    return load_tokenizer(folder_with(name))


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}
