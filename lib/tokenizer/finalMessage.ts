/** The last message left open, for the model to go on with: continue_final_message of transformers. */
import { show } from '../config/schema';
import { InvalidRequestError } from '../errors';
import { stringRepr } from './jinja/repr';
import { strip } from './jinja/text';

/** Put after the text to go on with; the space at its end shows whether the template trims. */
const TAG = 'CONTINUE_FINAL_MESSAGE_TAG ';
const BARE_TAG = TAG.trimEnd();

type Message = Readonly<Record<string, unknown>>;

export interface OpenConversation {
  messages: readonly Message[];
  /** The rendered text, ended where the last message does. Throws InvalidRequestError. */
  cut: (rendered: string) => string;
}

/** `messages` with the last one's `field` marked. Throws InvalidRequestError. */
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
      `continueFinalMessage is set, but the last message has no ${show(field)} to go on with`,
    );
  }
  if (!template.includes(field)) {
    throw new InvalidRequestError(
      `continueFinalMessage is ${show(field)}, a field that the chat template does not know`,
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

/** The last part that has text. */
function markParts(parts: readonly unknown[]): [unknown[], string] {
  for (let i = parts.length - 1; i >= 0; i--) {
    const part = parts[i];
    if (typeof part !== 'object' || part === null || !Object.hasOwn(part, 'text')) continue;
    const [marked, text] = markText((part as { text: unknown }).text, 'text');
    const changed = { ...part, text: marked };
    return [[...parts.slice(0, i), changed, ...parts.slice(i + 1)], text];
  }
  throw new InvalidRequestError(
    'continueFinalMessage is set, but the last message has no text to go on with',
  );
}

function cut(rendered: string, text: string): string {
  const at = rendered.lastIndexOf(BARE_TAG);
  if (at < 0 || !rendered.includes(strip(text, undefined, 'both'))) {
    throw new InvalidRequestError(
      `continueFinalMessage is set, but the chat template leaves out or changes the last message: ` +
        `${stringRepr(text.length > 200 ? `${text.slice(0, 200)}…` : text)} is not in what it renders`,
    );
  }
  const before = rendered.slice(0, at);
  // Without the space, the template trims the message, and what is gone on with ends without any.
  return rendered.startsWith(TAG, at) ? before : strip(before, undefined, 'right');
}
