"""Records jinja2's rendering of each line of snippets.txt in transformers' environment, for jinja.test.ts.

Run: python3 test/tokenizer/jinja/make.py   (Jinja2 3.1; the environment is that of
transformers/utils/chat_template_utils.py, copied here because importing transformers takes a while)
"""

import json
from datetime import datetime
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = Path(__file__).parent
CONTEXT = {
    "given": "G",
    "data": {"toString": 1, "constructor": 2, "__proto__": 3, "items": 4},
}


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_generation_support")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _generation_support(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)


def snippets():
    section, template = None, None
    for line in (FOLDER / "snippets.txt").read_text(encoding="utf-8").splitlines()[1:]:
        if line.startswith("## "):
            section = line[3:]
        else:
            yield section, line.replace("⏎", "\n").replace("\\r\n", "\r\n")


def result(template):
    try:
        compiled = environment.from_string(template)
    except (jinja2.TemplateSyntaxError, SyntaxError) as error:
        return {"syntaxError": getattr(error, "lineno", 1)}
    except ValueError:  # a constant that cannot be printed
        return {"error": "ValueError"}
    try:
        return {"text": compiled.render(**CONTEXT)}
    except RecursionError:
        return {"error": "RecursionError"}
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}


cases = [
    {"section": section, "template": template, **result(template)}
    for section, template in snippets()
]
expected = {"context": CONTEXT, "cases": cases}
text = json.dumps(expected, ensure_ascii=True, indent=1)
(FOLDER / "expected.json").write_text(text + "\n", encoding="utf-8")
print(len(cases), "cases")
