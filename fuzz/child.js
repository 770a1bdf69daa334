/** The process of one campaign, which fuzz/main.ts starts. */
'use strict';

require('../test/executor/requireTypescript');
require('./child.ts').runCampaign(JSON.parse(process.argv[2]));
