/** The thread that compiles grammars to programs: a large schema takes long. */
import { serve } from '../tokenizer/threadServer';
import { compileStructuredOutputs } from './compile';
import type { GrammarRequests } from './threadMessages';
import { tokenTexts } from './tokenTexts';

serve<GrammarRequests>((request) => {
  if (request.method === 'compile') {
    const value = compileStructuredOutputs(request.input);
    return { value, transfer: [value.buffer as ArrayBuffer] };
  }
  const value = tokenTexts(request.input.vocabulary, request.input.decoder);
  return { value, transfer: [value.bytes.buffer, value.offsets.buffer] };
});
