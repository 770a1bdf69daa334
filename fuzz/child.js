/** Process of one campaign, started by fuzz/main.ts. */
'use strict';

require('../test/executor/requireTypescript');
require('./child.ts').runCampaign(JSON.parse(process.argv[2]));
