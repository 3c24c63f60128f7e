// Nothing is validated or kept elsewhere: a key that is typed in here lives as long as the page.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null });
