/** The thread that compiles grammars to programs: a large schema takes long. */
import { tokensOf } from '../config/structuralTag';
import { serve } from '../tokenizer/threadServer';
import { compileStructuredOutputs } from './compile';
import type { CompiledGrammar, GrammarRequests } from './threadMessages';
import { tokenTexts } from './tokenTexts';

serve<GrammarRequests>((request) => {
  if (request.method === 'compile') {
    const program = compileStructuredOutputs(request.input);
    const { structuralTag } = request.input;
    const tokens = structuralTag === undefined ? [] : tokensOf(JSON.parse(structuralTag));
    const value: CompiledGrammar = { program, tokens: [...new Set(tokens)] };
    return { value, transfer: [program.buffer as ArrayBuffer] };
  }
  const value = tokenTexts(request.input.vocabulary, request.input.decoder);
  return { value, transfer: [value.bytes.buffer, value.offsets.buffer] };
});
