/** A chat in another dialect: its fields as those of a chat completion, run by the engine. */
import type { OutputStream, RequestOutput } from '../engine/outputs';
import type { Fields } from './body';
import { chatOptionsOf, messagesOf } from './chatFields';
import type { Exchange } from './exchange';
import { samplingParamsOf } from './samplingFields';

/** The engine's calls for `fields`, the fields of a chat completion with one answer. */
export class ChatRun {
  private readonly messages;
  private readonly params;
  private readonly options;

  /** Throws HttpError or InvalidRequestError. */
  constructor(
    private readonly exchange: Exchange,
    fields: Fields,
    logprobs?: number,
  ) {
    this.messages = messagesOf(fields);
    this.params = samplingParamsOf(
      fields,
      exchange.model,
      { maxTokens: null },
      { maxTokens: fields.max_tokens as number | undefined, logprobs },
    );
    this.options = { ...chatOptionsOf(fields), ...exchange.callOptions };
  }

  stream(): OutputStream {
    return this.exchange.model.llm.chatStream(this.messages, this.params, this.options);
  }

  async complete(): Promise<RequestOutput> {
    const { llm } = this.exchange.model;
    const [output] = await llm.chat(this.messages, this.params, {
      ...this.options,
      progress: false,
    });
    return output;
  }
}
