/** Suggests a known name for an unknown one: names nearby, and other libraries' names. */

/** Names of vLLM, OpenAI, transformers, llama.cpp and Ollama, in `plain` form, by our own names. */
const SYNONYMS: Readonly<Partial<Record<string, readonly string[]>>> = {
  // Sampling parameters.
  maxTokens: [
    'maxnewtokens',
    'maxcompletiontokens',
    'maxoutputtokens',
    'maxgenlen',
    'maxlength',
    'npredict',
    'numpredict',
  ],
  minTokens: ['minnewtokens', 'minlength'],
  n: ['numreturnsequences', 'bestof', 'numsamples', 'numcompletions'],
  temperature: ['temp'],
  repetitionPenalty: ['repeatpenalty'],
  badWords: ['badwordsids', 'bannedwords'],
  stop: ['stopsequences', 'stopstrings', 'stopwords', 'endsequences'],
  stopTokenIds: ['eostokenid', 'stopids', 'stoptokens'],
  logprobs: ['toplogprobs', 'numlogprobs', 'returnlogprobs'],
  allowedTokenIds: ['allowedtokens'],
  // Options of calls.
  signal: ['abortsignal', 'cancellationtoken'],
  timeoutMs: ['timeout', 'requesttimeout', 'maxtime', 'deadline', 'timeoutmilliseconds'],
  progress: ['usetqdm', 'showprogress', 'progressbar'],
  tools: ['functions'],
  chatTemplateKwargs: ['templatekwargs', 'templatevariables'],
  truncatePromptTokens: ['truncation', 'maxprompttokens'],
  // Engine arguments.
  model: ['modelpath', 'modelname', 'modelid', 'modeldir', 'pretrainedmodelnameorpath', 'path'],
  device: ['devicemap'],
  dtype: ['torchdtype'],
  maxModelLen: [
    'maxmodellength',
    'maxseqlen',
    'maxsequencelength',
    'contextlength',
    'contextsize',
    'nctx',
    'numctx',
  ],
  memoryUtilization: ['gpumemoryutilization', 'gpumemoryfraction', 'memfractionstatic'],
  kvCacheMemoryBytes: ['kvcachebytes', 'kvcachesize', 'kvcachememory'],
  maxNumSeqs: ['maxbatchsize', 'batchsize', 'maxrunningrequests'],
  maxNumBatchedTokens: ['maxprefilltokens', 'chunkedprefillsize'],
  maxQueuedRequests: ['maxqueuesize', 'maxqueuedrequests', 'maxwaitingrequests'],
  enablePrefixCaching: ['prefixcaching', 'enableprefixcache'],
  tensorParallelSize: ['tpsize', 'tp', 'numgpus'],
  eosTokenIds: ['eostokenid'],
  skipTokenizerInit: ['skiptokenizer'],
  onProgress: ['progresscallback', 'onload'],
};

/** At most this many characters of a caller's name are compared. */
const MAX_LENGTH = 64;

/** Ignores case, underscores and dashes. */
const plain = (name: string): string =>
  name.slice(0, MAX_LENGTH).replaceAll(/[_-]/g, '').toLowerCase();

/**
 * Edits (insert, delete, replace, swap neighbours) between two names: optimal string alignment, which
 * counts the common typing error of swapped letters once (Damerau 1964).
 */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      next[j] = Math.min(replaced, row[j] + 1, next[j - 1] + 1);
      const isSwap = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (isSwap) next[j] = Math.min(next[j], before[j - 2] + 1);
    }
    before = row;
    row = next;
  }
  return row[b.length];
}

/** Most edits between two names that are near: one in four letters of the shorter, at most 3. */
const maxEdits = (a: string, b: string): number =>
  Math.min(3, Math.floor(Math.min(a.length, b.length) / 4));

/** Length of the longest common prefix. */
function commonLength(a: string, b: string): number {
  let length = 0;
  while (length < a.length && a[length] === b[length]) length++;
  return length;
}

/**
 * The one of `known` that `name` most likely means: the same but for case, underscores and dashes, else
 * another library's name for it, else one a few edits away (of several, the one with the longest common
 * beginning, because few typing errors are in the first letters). Null if there is none.
 */
export function suggestName(name: string, known: readonly string[]): string | null {
  const given = plain(name);
  const same = known.find((candidate) => plain(candidate) === given);
  if (same !== undefined) return same;
  const synonym = known.find((candidate) => SYNONYMS[candidate]?.includes(given));
  if (synonym !== undefined) return synonym;
  const near = known
    .map((candidate) => ({ candidate, edits: editDistance(given, plain(candidate)) }))
    .filter(({ candidate, edits }) => edits <= maxEdits(given, plain(candidate)))
    .sort(
      (a, b) =>
        a.edits - b.edits ||
        commonLength(given, plain(b.candidate)) - commonLength(given, plain(a.candidate)),
    );
  return near[0]?.candidate ?? null;
}

/** The rest of a message about an unknown option: what is probably meant, else what there is. */
export function adviceFor(name: string, known: readonly string[]): string {
  const meant = suggestName(name, known);
  return meant === null ? `the options are ${known.join(', ')}` : `did you mean ${meant}?`;
}
