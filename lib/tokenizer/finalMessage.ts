/** Leaves the last message open for the model to continue: transformers' continue_final_message. */
import { show } from '../config/schema';
import { InvalidRequestError } from '../errors';
import { stringRepr } from './jinja/repr';
import { strip } from './jinja/text';

/** Marks the end of the continued text; its trailing space shows whether the template trims. */
const TAG = 'CONTINUE_FINAL_MESSAGE_TAG ';
const BARE_TAG = TAG.trimEnd();

type Message = Readonly<Record<string, unknown>>;

export interface OpenConversation {
  messages: readonly Message[];
  /** Cuts the rendered text after the last message. Throws InvalidRequestError. */
  cut: (rendered: string) => string;
}

/** Marks the end of the last message's `field`. Throws InvalidRequestError. */
export function openFinalMessage(
  messages: readonly Message[],
  template: string,
  continued: true | string,
): OpenConversation {
  const field = continued === true ? 'content' : continued;
  const final = messages[messages.length - 1];
  const value = Object.hasOwn(final, field) ? final[field] : undefined;
  if (value === undefined || value === null) {
    throw new InvalidRequestError(
      `continueFinalMessage is set, but the last message has no ${show(field)} to continue`,
    );
  }
  if (!template.includes(field)) {
    throw new InvalidRequestError(
      `continueFinalMessage is ${show(field)}, a field that the chat template does not use`,
    );
  }
  const [marked, text] = Array.isArray(value) ? markParts(value) : markText(value, field);
  return {
    messages: [...messages.slice(0, -1), { ...final, [field]: marked }],
    cut: (rendered) => cut(rendered, text),
  };
}

function markText(value: unknown, field: string): [string, string] {
  if (typeof value === 'string') return [value + TAG, value];
  throw new InvalidRequestError(
    `continueFinalMessage is set, but the last message's ${field} is ${show(value)}; it must be a string`,
  );
}

/** Marks the last part with text. */
function markParts(parts: readonly unknown[]): [unknown[], string] {
  for (let i = parts.length - 1; i >= 0; i--) {
    const part = parts[i];
    if (typeof part !== 'object' || part === null || !Object.hasOwn(part, 'text')) continue;
    const [marked, text] = markText((part as { text: unknown }).text, 'text');
    const changed = { ...part, text: marked };
    return [[...parts.slice(0, i), changed, ...parts.slice(i + 1)], text];
  }
  throw new InvalidRequestError(
    'continueFinalMessage is set, but the last message has no text part to continue',
  );
}

function cut(rendered: string, text: string): string {
  const at = rendered.lastIndexOf(BARE_TAG);
  if (at < 0 || !rendered.includes(strip(text, undefined, 'both'))) {
    throw new InvalidRequestError(
      `continueFinalMessage is set, but the chat template omits or changes the last message: ` +
        `${stringRepr(text.length > 200 ? `${text.slice(0, 200)}…` : text)} is not in the rendered text`,
    );
  }
  const before = rendered.slice(0, at);
  // A missing space means that the template trims the message, so trim the continued text too.
  return rendered.startsWith(TAG, at) ? before : strip(before, undefined, 'right');
}
