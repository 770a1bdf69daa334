"""OpenAI's client for Python, unmodified, against the server at argv[1]; prints what it got as JSON."""

import json
import sys

import openai
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="secret", max_retries=0)
messages = [{"role": "user", "content": "Tell me a story about a fox."}]
ignore_eos = {"ignore_eos": True}
settings = {
    "model": "stories",
    "messages": messages,
    "temperature": 0,
    "max_completion_tokens": 8,
    "extra_body": ignore_eos,
}
free = {**settings, "temperature": 1, "max_completion_tokens": 200, "seed": 3, "extra_body": None}


def streamed():
    text, usage = "", None
    chunks = client.chat.completions.create(
        **settings, stream=True, stream_options={"include_usage": True}
    )
    for chunk in chunks:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    return {"text": text, "completion_tokens": usage.completion_tokens}


def logprobs():
    [choice] = client.chat.completions.create(**settings, logprobs=True, top_logprobs=2).choices
    return {
        "tokens": [each.token for each in choice.logprobs.content],
        "tops": [len(each.top_logprobs) for each in choice.logprobs.content],
    }


class Place(BaseModel):
    model_config = {"extra": "forbid"}
    days: int


def tool_call():
    tool = openai.pydantic_function_tool(Place, name="get_weather")
    completion = client.chat.completions.parse(
        **free,
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    [call] = completion.choices[0].message.tool_calls
    return {
        "name": call.function.name,
        "parsed": isinstance(call.function.parsed_arguments, Place),
    }


def json_schema():
    completion = client.chat.completions.parse(
        **free,
        response_format=Place,
    )
    return isinstance(completion.choices[0].message.parsed, Place)


def responses():
    wanted = {"model": "stories", "input": messages, "temperature": 0, "max_output_tokens": 8}
    whole = client.responses.create(**wanted)
    text = ""
    with client.responses.stream(**wanted) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
    return {"text": whole.output_text, "streamed": text, "status": whole.status}


def embeddings():
    # The client asks for base64 by itself.
    data = client.embeddings.create(model="embedder", input=["a", "b"]).data
    plain = client.embeddings.create(model="embedder", input="a", encoding_format="float").data
    return [each.embedding for each in [*data, *plain]]


def error_of(call):
    try:
        call()
    except openai.APIError as error:
        return {
            "name": type(error).__name__,
            "status": getattr(error, "status_code", None),
            "param": error.param if isinstance(error, openai.APIStatusError) else None,
        }
    return None


def errors():
    stranger = client.with_options(api_key="guess")
    long = {**settings, "max_completion_tokens": 900, "n": 32, "temperature": 1}
    return [
        error_of(lambda: client.chat.completions.create(**{**settings, "model": "other"})),
        error_of(lambda: client.chat.completions.create(**settings, top_p=2)),
        error_of(lambda: stranger.models.list()),
        error_of(lambda: client.chat.completions.create(**long, timeout=0.05)),
    ]


def left():
    long = {**settings, "max_completion_tokens": 900}
    stream = client.chat.completions.create(**long, stream=True)
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    stream.close()
    return True


whole = client.chat.completions.create(**settings)
print(
    json.dumps(
        {
            "models": [model.id for model in client.models.list()],
            "text": whole.choices[0].message.content,
            "finish_reason": whole.choices[0].finish_reason,
            "completion": client.completions.create(
                model="stories", prompt=["Once upon a time"] * 2, temperature=0, max_tokens=8
            ).choices[1].text,
            "streamed": streamed(),
            "logprobs": logprobs(),
            "tool_call": tool_call(),
            "json_schema": json_schema(),
            "responses": responses(),
            "embeddings": embeddings(),
            "errors": errors(),
            "left": left(),
        }
    )
)
