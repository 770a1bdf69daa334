/** A model, or several, as a web-standard function from Request to Response. */
import { ApiKeys, corsHeaders, preflight } from './access';
import { type Fields, readJson } from './body';
import { Exchange, type ExchangeLoad } from './exchange';
import { checkHandlerOptions, type HandlerOptions, type HandlerSettings } from './handlerOptions';
import { HttpError, httpErrorOf, openAiErrorBody } from './httpError';
import { jsonResponse } from './jsonResponse';
import { pageResponse } from './page';
import { getRouteOf, POST_ROUTES, type PostRoute } from './routes';
import { type Served, ServedModels } from './servedModels';
import { structureError } from './structuredOutputs';
import { tracedModel } from './tracing';

/** Answers a request; never rejects. */
export type Handler = (request: Request) => Promise<Response>;

/**
 * Serves OpenAI's and Anthropic's APIs for `served` (docs/server.md). The function mounts in any server
 * that speaks Request and Response; `toNodeListener` puts it on node:http. It does not shut the models
 * down. A model's name is its folder's, or its key in `models`. Throws ConfigError.
 */
export function createHandler(served: Served, options: HandlerOptions = {}): Handler {
  const server = new Server(new ServedModels(served), checkHandlerOptions(options));
  return (request) => server.answer(request);
}

/** Distinct unknown fields that are warned of. */
const MAX_WARNINGS = 100;

class Server {
  private readonly apiKeys: ApiKeys;
  private readonly warned = new Set<string>();
  load = 0;

  constructor(
    readonly models: ServedModels,
    private readonly settings: HandlerSettings,
  ) {
    this.apiKeys = new ApiKeys(settings.apiKeys);
  }

  async answer(request: Request): Promise<Response> {
    const cors = corsHeaders(request, this.settings.allowedOrigins);
    const { pathname } = new URL(request.url);
    const path = pathname.length > 1 ? pathname.replace(/\/$/, '') : pathname;
    if (request.method === 'OPTIONS' && 'access-control-allow-origin' in cors) {
      return preflight(request, cors);
    }
    const route = POST_ROUTES.get(path);
    let response: Response;
    try {
      this.apiKeys.check(request, path);
      response = await this.route(request, path, route);
    } catch (error) {
      const failure = httpErrorOf(error);
      const body = (route?.errorBody ?? openAiErrorBody)(failure);
      response = jsonResponse(body, failure.status, failure.headers);
    }
    for (const [name, value] of Object.entries(cors)) response.headers.set(name, value);
    return response;
  }

  private async route(
    request: Request,
    path: string,
    route: PostRoute | undefined,
  ): Promise<Response> {
    const { method } = request;
    const get = path === '/' && this.settings.ui ? pageResponse : getRouteOf(path);
    if (get !== undefined) {
      if (method === 'GET' || method === 'HEAD' || path === '/ping') return get(this);
      throw new HttpError(405, 'Method Not Allowed', null, { allow: 'GET, HEAD' });
    }
    if (route === undefined) throw new HttpError(404, 'Not Found');
    if (method !== 'POST') throw new HttpError(405, 'Method Not Allowed', null, { allow: 'POST' });
    const fields = await readJson(request, this.settings.maxBodyBytes);
    this.warnOfUnknown(fields, route, path);
    const model = tracedModel(this.models.find(fields.model), request.headers);
    const load = this.loadOf(route);
    const exchange = new Exchange(fields, model, this.settings, request, load);
    load.begin();
    try {
      return await route.answer(exchange);
    } catch (error) {
      throw structureError(httpErrorOf(error), fields, route.formatField);
    } finally {
      load.end();
    }
  }

  private loadOf({ isLoad }: PostRoute): ExchangeLoad {
    const count = isLoad ? 1 : 0;
    return { begin: () => (this.load += count), end: () => (this.load -= count) };
  }

  /** Warns once of each field that has no effect. */
  private warnOfUnknown(fields: Fields, route: PostRoute, path: string): void {
    if (route.fields.length === 0) return;
    for (const name of Object.keys(fields)) {
      if (route.fields.includes(name)) continue;
      const shown = name.slice(0, 64);
      if (this.warned.has(shown) || this.warned.size >= MAX_WARNINGS) continue;
      this.warned.add(shown);
      process.emitWarning(
        `${path}: the field ${JSON.stringify(shown)} is unknown and ignored`,
        'UniprocWarning',
      );
    }
  }
}
