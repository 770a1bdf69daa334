import { readFileSync } from 'node:fs';
import path from 'node:path';

/** What transformers answers, greedily in float32, with the model that comes with the package. */
interface Reference {
  promptTokenIds: number[];
  tokenIds: number[];
  text: string;
}

export const stories = JSON.parse(
  readFileSync(path.join(__dirname, '..', 'golden', 'stories.json'), 'utf8'),
) as { prompts: (Reference & { prompt: string })[]; chat: Reference & { messages: never } };
